"""Plain synchronous functions over peewee, one module per record."""
