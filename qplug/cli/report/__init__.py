"""Output of the commands: tables as plain values, pictures, and a screen that prints for people or for pipes."""
