"""Enrolment: one video of a person -> one `.avatar` file."""
