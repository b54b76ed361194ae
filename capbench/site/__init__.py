"""The site: the leaderboards, every record and the library's pages as one folder of plain files.

The pages that `capbench leaderboard` writes are taken as they are; tables to sort and filter, and a page a record, are
made here. MkDocs joins them. It needs no server, and asks no other host for anything.
"""
