"""What a step costs before it is run: operations, launches, memory and time."""
