"""The one exception for what a user can mend: shown as its sentence, without a traceback."""


class UserError(Exception):
    """One sentence that names the key, what it was and what it may be."""
