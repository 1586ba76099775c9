"""Why it wins, in numbers and pictures: what observers compute. They are switched on as callbacks."""
