"""The Assess tab: an image and its prompt in, three cards out, which people can correct."""
