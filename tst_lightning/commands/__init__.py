"""One module per console command; each has ``main(name, arguments)``."""
