"""The jobs a person requests, one file each."""
