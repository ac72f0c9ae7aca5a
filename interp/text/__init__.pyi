from .chat import chat_prompt, chat_task, chat_text
from .counterfactuals import rewriter, split_label
from .distances import listed_distances, read_distances
from .languages import naming_prompt, tagged
from .reading import prompt_rows, with_counterfactuals
from .sources import HubDataset, labels_in, read_documents
from .tasks import Item, Task, align_tasks, prompts_of, read_editing
from .tokens import prompt_ids

__all__ = [
    "HubDataset",
    "Item",
    "Task",
    "align_tasks",
    "chat_prompt",
    "chat_task",
    "chat_text",
    "labels_in",
    "listed_distances",
    "naming_prompt",
    "prompt_ids",
    "prompt_rows",
    "prompts_of",
    "read_distances",
    "read_documents",
    "read_editing",
    "rewriter",
    "split_label",
    "tagged",
    "with_counterfactuals",
]
