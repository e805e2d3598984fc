class ConfigError(ValueError):
    """Something the user gave cannot work. The message says what, where, and what to do about it.

    The tools print it as one line; anything else that goes wrong keeps its traceback.
    """
