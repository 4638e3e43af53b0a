"""HiViLT's fusion taken apart: what does each piece add, at equal cost?"""
