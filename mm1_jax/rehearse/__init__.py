"""Compiles a named config ahead of time for devices that need not exist: memory and step time.

config -> lowered train step -> optimized HLO text -> schedule -> predicted step, report
          compile               compile               program     predict         report
"""
