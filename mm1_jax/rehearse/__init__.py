"""Ahead-of-time compilation of a named config for a slice that is not there: does it fit, how fast?

config -> lowered train step -> optimised HLO text -> schedule -> predicted step, report
          compile               compile               program     predict         report
"""
