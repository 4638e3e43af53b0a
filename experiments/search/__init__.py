"""Is a search better than chance with as many trials?"""
