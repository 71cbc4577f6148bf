"""Score a network on a data set and on each of its videos: python scripts/score_videos.py --help"""

if __name__ == "__main__":
    from _door import run

    run("experiments.evidence.video_scores")
