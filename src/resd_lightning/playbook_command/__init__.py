"""`resd playbook`: read, search, compare, edit, merge and try playbooks."""
