"""Tests of capbench and its reproductions."""
