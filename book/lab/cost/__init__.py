"""What do adapters cost?

bench.py        time and memory, by one command, recorded as JSON
"""
