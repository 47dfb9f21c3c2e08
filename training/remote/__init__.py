"""Models on servers: teachers that write descriptions, and servers that stand in for the backbone."""
