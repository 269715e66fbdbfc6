"""The command `adadfq`: one function a command, its docstring the help."""
