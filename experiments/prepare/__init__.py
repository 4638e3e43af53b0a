"""What do the checks of ``hvlm prepare`` cost?"""
