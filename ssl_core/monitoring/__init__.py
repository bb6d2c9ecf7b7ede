"""Watching what arrives: does it still look like what the champion was trained and judged on?"""
