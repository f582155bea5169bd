"""``python -m qplug``, and with it ``accelerate launch … -m qplug run recipe.yaml``."""

from qplug.cli import main

if __name__ == "__main__":
    main()
