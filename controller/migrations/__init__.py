"""Migrations ``NNNN_name.py``, applied in order by ``controller.db.migrate``, each once and whole.

A migration never imports the models: they move on, and it does not. ``up(migrator, db)`` gets peewee's
SchemaMigrator and the database; a test holds that all migrations together make what the models describe.
"""
