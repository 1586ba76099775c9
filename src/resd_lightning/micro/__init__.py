"""The micro-world: a language and a model small enough that a laptop shows in two minutes whether a method learns."""
