"""Pure decisions: values in, values out. Never awaits, reads a clock, an env var or chance."""
