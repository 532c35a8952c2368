"""The output of `toushi doctor`, in English and Chinese."""

from toushi.probe.base.bilingual_text import Messages

# key: (English, Chinese)
MESSAGES = Messages(
    {
        "model": ("model", "模型"),
        "family": ("{kind}, family {family}", "{kind}，家族 {family}"),
        "no_family": ("{kind}, which belongs to no family that can be recorded", "{kind}，不属于可记录的模型族"),
        "own": (
            "{kind}, family {family}; our own engine (--engine diffusers for the other)",
            "{kind}，家族 {family}；自有引擎（另一个用 --engine diffusers）",
        ),
        "device": ("device", "设备"),
        "on_cpu": ("{name}, {threads} threads, {free} of memory free", "{name}，{threads} 线程，空闲内存 {free}"),
        "on_gpu": ("{name} ({card}), {free} of its memory free", "{name}（{card}），空闲显存 {free}"),
        "dtype": ("numbers", "数值类型"),
        "default_dtype": (
            "{dtype} (the default here; --dtype fp32|bf16|fp16)",
            "{dtype}（此处默认；--dtype fp32|bf16|fp16）",
        ),
        "asked_dtype": ("{dtype}, as requested", "{dtype}（按要求）"),
        "kernel": ("attention", "注意力内核"),
        "kernels": ("SDPA picks {plain}; with a mask {masked}", "SDPA 选用 {plain}；有掩码时 {masked}"),
        "libraries": ("libraries", "可选库"),
        "here": ("installed: {names}", "已装：{names}"),
        "absent": ("not installed: {names}", "未装：{names}"),
        "part": ("part", "部件"),
        "class": ("class", "类"),
        "parameters": ("parameters", "参数量"),
        "stored": ("on disk", "磁盘"),
        "memory": ("memory in {dtype}", "{dtype} 内存"),
        "known": ("source", "来源"),
        "headers": ("file headers", "文件头"),
        "index": ("index", "索引"),
        "config": ("config", "配置"),
        "missing": ("{count} files missing", "缺 {count} 个文件"),
        "whole": ("all", "合计"),
        "offload": ("--offload", "--offload"),
        "fits": ("{size}, fits", "{size}，可以"),
        "not": ("{size}, too large", "{size}，放不下"),
        "size_unknown": ("unknown", "未知"),
        "weights_at_once": (
            "bytes of weights that are on the device at the same time; {activations} more are needed for a picture of {size} (a rule of thumb)",
            "设备上同时存放的权重；{size} 的画面还须留出 {activations}（经验估计）",
        ),
        "cpu_offload": (
            "offload has no effect on the CPU, so only the first row counts",
            "在 CPU 上卸载没有好处，只看第一行",
        ),
        "run": ("Run it with: {how}", "可以这样运行：{how}"),
        "nothing_fits": (
            "It will not run here: the smallest choice needs {size}",
            "此处无法运行：最省的方案也要 {size}",
        ),
        "weights_absent": (
            "Its weights are missing ({count} files): download them first",
            "权重不在此处（{count} 个文件）：请先下载",
        ),
        "recording": (
            "recording {sites} sites of image-to-text attention, {steps} steps, {columns} text columns, {branches} "
            "branch(es): on disk, in memory",
            "记录 {sites} 处图对文注意力，{steps} 步，文本 {columns} 列，{branches} 个分支：磁盘、内存",
        ),
        "size": ("size", "尺寸"),
        "within": ("{disk}, {memory}", "{disk}，{memory}"),
        "beyond": ("{disk}, {memory}: refused", "{disk}，{memory}：拒绝"),
        "keep": ("--keep {keep}", "--keep {keep}"),
        "refused": (
            "refused: exceeds the budget of {budget} on disk, or a tenth of the free memory. Record fewer --sites or --words",
            "拒绝：超出磁盘预算 {budget} 或空闲内存的十分之一；可减少 --sites 或 --words",
        ),
        "encoder": ("also recorded: {layers} layers of {encoder}", "也会记录：{encoder} 的 {layers} 层"),
        "unknown": ("{part}: unknown ({why})", "{part}：未知（{why}）"),
    }
)
