class ConfigError(ValueError):
    """Something the user gave cannot work. The message says what, where, and what to do about it.

    The tools print it as one line; anything else that goes wrong keeps its traceback.
    """

    def __str__(self) -> str:
        # From a data loader's process it arrives with that process's traceback before it.
        return super().__str__().rpartition('ConfigError: ')[2].rstrip()
