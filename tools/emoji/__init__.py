"""How the emoji teachers are made: pictures, captions, judge, networks. For maintainers alone."""
