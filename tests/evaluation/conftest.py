from tests.tiny import quick_judge, tiny

__all__ = ["quick_judge", "tiny"]
