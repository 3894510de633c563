"""Exit codes of every command and of a run: what a shell, a scheduler or a script is told."""

DONE = 0
FAILED = 1
REFUSED = 2
STOPPED = 75  # EX_TEMPFAIL: "run me again", for schedulers
INTERRUPTED = 130  # what a shell reports of a command that Ctrl-C ended

MEANINGS = {
    DONE: "done",
    FAILED: "something failed after it was started; the message says what, and what to run next",
    REFUSED: "the recipe, the arguments or the data cannot be used; nothing was started",
    STOPPED: "a run was told to stop, and has; the same command goes on from its last checkpoint",
    INTERRUPTED: "Ctrl-C ended a command that is not a run",
}
