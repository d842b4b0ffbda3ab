"""Rendering: text, trees and cells for people."""
