"""What is wrong across the fleet, and what of it can be mended without risk.

``survey`` reads the records, ``look`` asks the hosts, the other modules compare the two and are pure; ``repair`` acts.
"""
