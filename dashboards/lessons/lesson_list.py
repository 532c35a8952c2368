"""The lessons in the order of the page."""

from toushi.dashboards.lessons import (
    attention_lesson,
    cause_lesson,
    context_lesson,
    guidance_lesson,
    noise_lesson,
    sense_lesson,
    steps_lesson,
    token_lesson,
)

LESSONS = (
    noise_lesson.LESSON,
    token_lesson.LESSON,
    attention_lesson.LESSON,
    guidance_lesson.LESSON,
    cause_lesson.LESSON,
    context_lesson.LESSON,
    sense_lesson.LESSON,
    steps_lesson.LESSON,
)
