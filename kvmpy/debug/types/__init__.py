"""C types of a guest's variables, from DWARF or BTF, and values read out of guest memory by them."""
