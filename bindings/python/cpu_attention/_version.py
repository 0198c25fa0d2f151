# That of the library: scripts/test_python.sh compares it with Cargo.toml.
__version__ = "0.2.0"
