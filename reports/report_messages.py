"""The words of the report itself, in both languages."""

from toushi.experiments.runner.study import Said

REPORT = Said("透视报告", "Toushi report")
QUESTION = Said("问题", "Question")
METHOD = Said("方法", "Method")
FINDING = Said("结论", "Finding")
FIGURES = Said("图", "Figures")
FIGURE = Said("图", "Figure")
TABLES = Said("表", "Tables")
PROVENANCE = Said("来历", "Provenance")
CONTENTS = Said("目录", "Contents")
MADE_AGAIN = Said("重新生成", "Made again by")
ROWS_LEFT_OUT = Said(
    "共 {all} 行，此处为前 {some} 行；全部在 {file}", "The first {some} of {all} rows; all are in {file}"
)
DOWNLOAD = Said("下载 CSV", "download CSV")

VERDICTS = {
    "supported": Said("得到支持", "supported"),
    "refuted": Said("被推翻", "refuted"),
    "undecided": Said("未能判定", "undecided"),
    "measured": Said("已测得", "measured"),
}

NOT_WHOLE = Said("未完成", "not finished")
UNFINISHED = Said(
    "此次运行尚未完成：{all} 个任务中已完成 {done} 个，因此还没有结论、图与表。再执行一次同样的命令即可继续。",
    "This run is not finished: {done} of its {all} jobs are done, so there is no finding, figure or table yet. "
    "The same command goes on with it.",
)
MIXED = Said(
    "各任务由 {count} 个版本的代码算出：改动之前完成的任务没有重算。",
    "Its jobs were computed with {count} versions of the code: what was done before a change was not done again.",
)
FAILED = Said("失败的任务：{jobs}", "Jobs that failed: {jobs}")
NO_MODULE = Said(
    "这里没有实验 {name}，所以没有画图；表格如下。",
    "The experiment {name} is not here, so no figure is drawn; the tables follow.",
)
TRACE_UNFINISHED = Said(
    "这次绘图没有完成：共 {all} 步，记录了 {done} 步。", "This run did not finish: {done} of {all} steps were recorded."
)
NO_STEP = Said("没有记录任何一步，所以没有图。", "No step was recorded, so there is no figure.")
NO_WORD = Said("没有记录任何词，所以没有按词的图。", "No word was recorded, so there is no figure by word.")

TRACE = Said("这张图里，每个词去了哪里", "Where each word went in this picture")
WORDS = Said(
    "图像，以及每个词在图上得到的注意力；所有热图同一尺度。词旁的百分数是它占图像全部注意力的份额。",
    "The picture, and where the attention to each word lies; all maps on one scale. The number beside a word is its "
    "share of all the attention of the image's cells.",
)
LAYERS = Said(
    "“{word}”：各层（行）在各步（列）看向何处。",
    '"{word}": where each layer (row) looked for it at each step (column).',
)
NARROWEST = Said("所有词中，它的热图最集中。", "Of all words its map is the most concentrated.")
TIMELINE = Said("每个词在每一步得到的注意力份额。", "The share of the attention that each word had at each step.")
TOKENS = Said("每个词元及其份额；全部份额之和为 1。", "Each token and its share; all shares sum to 1.")

# Of the manifests.
FACTS = {
    "config": Said("配置", "configuration"),
    "config_sha256": Said("配置的哈希", "hash of the configuration"),
    "seeds": Said("随机种子", "seeds"),
    "seed": Said("随机种子", "seed"),
    "weights": Said("权重与数据", "weights and data"),
    "versions": Said("版本", "versions"),
    "git": Said("提交", "commit"),
    "code_sha256": Said("实验代码的哈希", "hash of the experiment's code"),
    "hardware": Said("硬件", "hardware"),
    "threads": Said("每进程线程数", "threads of a process"),
    "argv": Said("当时的命令", "command as given"),
    "jobs": Said("任务", "jobs"),
    "time": Said("计算时间", "time computed"),
    "concluded": Said("作结论于", "concluded"),
    "may_differ": Said("能否重现", "how far it can be repeated"),
    "tables": Said("表格的哈希", "hashes of the tables"),
    "prompt": Said("提示词", "prompt"),
    "negative_prompt": Said("反向提示词", "negative prompt"),
    "model": Said("模型", "model"),
    "steps": Said("步数", "steps"),
    "size": Said("尺寸（高×宽）", "size (height × width)"),
    "guidance": Said("引导强度", "guidance"),
    "sampler": Said("采样器", "sampler"),
    "device": Said("设备", "device"),
    "dtype": Said("数值类型", "numbers"),
    "kernel": Said("注意力内核", "attention kernel"),
    "heat_map": Said("热图的取法", "how maps are averaged"),
    "keep": Said("保留", "kept"),
    "edits": Said("干预", "edits"),
    "segmenter": Said("分词", "words found by"),
}


def filled(said: Said, **values: object) -> Said:
    return Said(*(text.format(**values) for text in said))
