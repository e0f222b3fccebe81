"""Entry of a runner process: tie it to its supervisor first, import everything else after."""

from falctl import lifeline

if __name__ == "__main__":
    _control = lifeline.begin(guarded=True)

    from falctl.host.process import run

    run(_control)
