"""What a user writes: the task types of an app, their options, and the arguments and the Context of a handler."""
