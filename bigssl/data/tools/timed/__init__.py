"""Rows of a table with a time -> series of one step: which time, which gaps, which rows, which channels?"""
