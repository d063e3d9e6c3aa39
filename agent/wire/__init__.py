"""Types that cross the wire, one module per resource.

This package imports the standard library and msgspec only, so that any client can use it. Requests refuse
unknown fields; answers tolerate them, so that an older client can read a newer server. Times are RFC 3339 in
UTC, sizes are bytes, UUIDs are lower-case with hyphens. Every type has an ``example()`` that the documentation
and the tests use.
"""
