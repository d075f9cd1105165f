"""How good it is: figures, the fixed judge, pictures of them, and the report that holds them all."""
