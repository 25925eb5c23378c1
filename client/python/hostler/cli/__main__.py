"""`hostler`, the program: whoever presses Ctrl-C while it is still being loaded has interrupted nothing, and is shown nothing."""

import signal


def main() -> None:
    """The console script."""
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else the caller has it ignored, which stays
    if ours:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from hostler.cli import app

    if ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    app.main()


if __name__ == "__main__":
    main()
