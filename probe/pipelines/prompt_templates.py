"""What pipelines put around a prompt before they encode it: the chat templates of language models."""

from collections.abc import Callable

from toushi.probe.pipelines.family import EncodePromptCall

PROMPT_MARK = "toushi7prompt"  # put into a chat template in place of the prompt


def split_template(text: str) -> tuple[str, str]:
    """What is before and after PROMPT_MARK in a template that has it in place of the prompt."""
    before, _, after = text.partition(PROMPT_MARK)
    return before, after


def qwen3_template(thinking: bool) -> Callable[[EncodePromptCall, bool], tuple[str, str]]:
    """`PromptPart.template` of Qwen3's chat template, with the prompt as the user's message."""

    def template(call: EncodePromptCall, negative: bool) -> tuple[str, str]:
        message = [{"role": "user", "content": PROMPT_MARK}]
        return split_template(
            call.model.tokenizer.apply_chat_template(
                message, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
            )
        )

    return template
