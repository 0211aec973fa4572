"""The one exception that is written for the person who runs the program."""


class UserError(Exception):
    """Something the user can mend; the message says what was wrong, what was seen and what to do."""
