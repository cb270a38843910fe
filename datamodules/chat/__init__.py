"""Chats: files, templates, tokens with answer spans."""
