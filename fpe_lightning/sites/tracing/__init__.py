"""How hidden widths are found: every entry of every parameter axis is followed through the operators of a forward."""
