"""What both daemons need to serve HTTP: errors, bodies, authentication, OpenAPI, settings."""
