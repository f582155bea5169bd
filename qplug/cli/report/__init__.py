"""What the command line shows: tables as plain values, and a screen that prints them for people or for pipes."""
