"""How is a network run, watched, cut and resumed?"""
