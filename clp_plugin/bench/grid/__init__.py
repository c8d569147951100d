"""Records times methods times seeds: planned, run by an executor record by record, stored cell by cell.

``methods`` says what a method's name stands for, ``plan`` what cells there are, ``work`` runs those of one record, and
``here``, ``local`` and ``on_ray`` are the places where that can happen.
"""
