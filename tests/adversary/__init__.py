"""Ways to lose a mask: found by hand, and by a machine that makes up a router's life."""
