"""The kernel's inference beside what else could compute the same answers on this machine."""
